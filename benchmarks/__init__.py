"""Side-by-side measurements on a CPU, as ratios: what each is for and what came out stands in README.md beside this file."""
