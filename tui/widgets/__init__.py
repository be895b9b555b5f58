"""What is drawn: functions that turn state into rows of text, and the widgets that paint rows."""
