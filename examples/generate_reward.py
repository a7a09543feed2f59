"""
Have a language model write a reward for a LIBERO task, verify it, and read what it pays.

    ANTHROPIC_API_KEY=... python examples/generate_reward.py libero_goal-7
"""

import argparse

from sb3_tgrpo.rewards import generate_reward, load_reward


def main() -> None:
    """Print the program, and its verification if it is new."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", nargs="?", default="libero_goal-7")
    parser.add_argument("--shipped", action="store_true", help="show the reward that ships instead of asking for a new one")
    args = parser.parse_args()
    if args.shipped:
        program = load_reward(args.task)
    else:
        made = generate_reward(args.task, candidates=2, max_rounds=3, out=f"rewards-generated/{args.task}")
        print(made.report.table())
        print(f"estimated cost: {made.cost_usd} dollars")
        program = made.program
    print(program.to_python())


if __name__ == "__main__":
    main()
