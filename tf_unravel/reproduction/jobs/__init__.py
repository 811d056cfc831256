"""What is trained and measured for the exhibits, and what has been."""
