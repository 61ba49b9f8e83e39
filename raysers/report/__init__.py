"""One HTML page with figures and tables from finished runs."""
