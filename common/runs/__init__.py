"""A script and its run: options, the folder, the record, the report. Knows no TensorFlow but for the start-up."""
