"""The paper's suites for FLUX.1 [dev]: concepts, celebrities, prompts, and a plan of each table.

Nudity is `configs/nudity.py`.
"""
