"""Questions attempted K times by a policy: a teacher's right answers become trajectories, rates choose the RL questions."""
