"""Configuration: schema, loading from conf/, checks across sections."""
