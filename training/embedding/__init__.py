"""Embeds the items of a catalogue, once per content."""
