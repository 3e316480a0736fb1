{{ range .Messages }}{{ "<|" }}{{ .Role }}{{ "|>\n" }}{{ .Content }}{{ "<|end|>\n" }}{{ end }}{{ "<|assistant|>\n" }}
