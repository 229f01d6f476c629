"""The step `simulate`: a screen in the Kaggle layout, to run everything else on."""
