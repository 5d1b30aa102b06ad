"""What other tools read: an audit as a log of Inspect, a task of lm-eval, metadata, JUnit XML."""
