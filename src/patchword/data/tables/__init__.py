"""Your own images and captions: rows from the hub, parquet, lists, image folders and JSON files."""
