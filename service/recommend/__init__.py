"""From a history to ranked items: query, search, filters, diversity and live recall."""
