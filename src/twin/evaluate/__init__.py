"""Is it me, and did it survive: log-likelihood of held-out replies, and how sure one can be of a change."""
