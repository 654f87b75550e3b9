"""Defines stored graphs: what a model computes, as data, and the checks before anything of it runs."""
