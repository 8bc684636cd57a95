"""How the ranks of one job work together: who samples, what all of them know, and where each row is trained."""
