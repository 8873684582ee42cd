"""``python -m attendo``."""

from attendo.cli import main

main()
