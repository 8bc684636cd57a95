"""Pure tensor maths: policy loss, supervised loss, KL and aggregation."""
