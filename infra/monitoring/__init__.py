"""What operators load into Prometheus and Grafana: `rules/` and `boards/`. Rules are written by hand, boards by `draw_boards.py`."""
