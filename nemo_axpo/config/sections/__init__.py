"""Sections of a run's config: a file each, or a few that belong together; fields, defaults and the rules of one section."""
