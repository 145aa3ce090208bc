"""What the server reports on itself: metrics, log lines and traces."""
