"""The step `simulate`: a screen in any layout, to run everything else on."""
