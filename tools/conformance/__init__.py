"""Three readers of ``.aibit`` that share no code with the package, written from its specification."""
