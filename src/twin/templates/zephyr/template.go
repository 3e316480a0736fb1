{{ range .Messages }}{{ "<|" }}{{ .Role }}{{ "|>\n" }}{{ .Content }}{{ "</s>\n" }}{{ end }}{{ "<|assistant|>\n" }}
