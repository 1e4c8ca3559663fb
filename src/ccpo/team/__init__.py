"""What a team is and says: roles, prompts, the places of answers, one pass; no torch."""
