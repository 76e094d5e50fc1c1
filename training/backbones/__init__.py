"""Vision-language models that embed items and histories."""
