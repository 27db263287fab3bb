"""What a person writes, as checked values. No torch, no optuna here."""
