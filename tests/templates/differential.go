// Renders JSON lines of {"template", "data"} with Go's own text/template: what twin's renderer is compared with.
package main

import (
	"bytes"
	"encoding/json"
	"os"
	"slices"
	"text/template"
)

type message struct{ Role, Content string }

type pair struct {
	Template string
	Data     struct {
		System, Prompt, Response string
		Messages                 []*message
		Words                    []string
		Flag                     bool
	}
}

func render(one pair) (any, error) {
	parsed, err := template.New("").Option("missingkey=error").Parse(one.Template)
	if err != nil {
		return nil, err
	}
	data := one.Data
	var out bytes.Buffer
	err = parsed.Execute(&out, map[string]any{
		"System": data.System, "Prompt": data.Prompt, "Response": data.Response,
		"Messages": slices.Clip(data.Messages), "Words": slices.Clip(data.Words),
		"Flag": data.Flag, "Nothing": nil,
	})
	return map[string]any{"bytes": out.Bytes()}, err // bytes travel as base64
}

func main() {
	reader, writer := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for reader.More() {
		var one pair
		if err := reader.Decode(&one); err != nil {
			panic(err)
		}
		result, err := render(one)
		if err != nil {
			result = map[string]any{"error": err.Error()}
		}
		writer.Encode(result)
	}
}
