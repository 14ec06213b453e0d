"""Reports: what several runs gave, put together as one page with its figures and numbers."""
