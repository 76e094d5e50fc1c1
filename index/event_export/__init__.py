"""The directory of exported events: its files and manifests, erasures, compaction."""
