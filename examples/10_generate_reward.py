"""
A reward for a LIBERO task, written by a language model, verified, and printed as code.

    ANTHROPIC_API_KEY=... python examples/10_generate_reward.py libero_goal-7
    python examples/10_generate_reward.py libero_goal-7 --shipped      # the reward that ships; needs no key
"""

import argparse

from sb3_tgrpo.rewards import generate_reward, load_reward


def main() -> None:
    """Print the program, and its verification if it is new."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
