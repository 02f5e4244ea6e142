"""The plots and the table of the page. A view draws what `page` tells it, and reports what the mouse selects."""
