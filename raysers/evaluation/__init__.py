"""What predictions are worth: correctness, fairness, speakers and comparisons, with intervals."""
