"""Small measurements before a run: do engine and trainer see the same images and the same distribution?"""
