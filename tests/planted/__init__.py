"""Events with incidents that are known beforehand, and the alerts that must follow from them."""
