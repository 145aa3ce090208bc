"""HTTP only: each module turns requests into domain calls and results into answers."""
