"""Files and batches: upload store, validation, journal, runner."""
