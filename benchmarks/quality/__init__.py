"""What a training's arithmetic buys: scores of samples against floating-point operations and seconds, by setting."""
