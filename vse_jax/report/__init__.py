"""Reports: what is said of a run (`content`), and the page that shows it (`page`)."""
