"""tmp"""
import sys
def main() -> None:
    print("vlpress 0.1.0")
