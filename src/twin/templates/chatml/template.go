{{ range .Messages }}{{ "<|im_start|>" }}{{ .Role }}{{ "\n" }}{{ .Content }}{{ "<|im_end|>\n" }}{{ end }}{{ "<|im_start|>assistant\n" }}
