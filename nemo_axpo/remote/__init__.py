"""Services outside of the run (a judge, a search engine): HTTP with retries, a pace, and answers kept on disk."""
