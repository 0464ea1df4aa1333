"""The paper's suites for FLUX.1 [dev]: concepts, celebrities, prompt files and a plan of each table.

Nudity is `configs/nudity.py`.
"""
