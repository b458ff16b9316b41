"""People who label: the store, its queue, the site, what goes in and out."""
