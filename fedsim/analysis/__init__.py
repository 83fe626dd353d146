"""Says what runs mean: tables for a terminal, comparisons, plots. Of fedsim it knows the record's reader only."""
