"""Clusters of the backends, which tests start themselves: on loopback, with data in a folder of the test's."""
