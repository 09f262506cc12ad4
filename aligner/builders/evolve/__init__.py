"""Auto Evol-Instruct (arXiv 2406.00770): instructions made harder by a method that is optimized
first, and answered; with classic Evol-Instruct, Instruct-SkillMix and Magpie beside it."""
