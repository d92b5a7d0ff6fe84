"""Groups: what a group is given, and groups as torch shows them."""
