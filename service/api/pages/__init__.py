"""Answers the pages for people: documentation and playground."""
