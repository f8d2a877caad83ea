// Complete a prompt with the standard library: go run complete.go
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
)

func setting(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

func main() {
	body, err := json.Marshal(map[string]any{
		"model":       setting("AFTERWORD_MODEL", "smollm2-135m-instruct"),
		"prompt":      "Say this is a test",
		"max_tokens":  7,
		"temperature": 0,
	})
	if err != nil {
		log.Fatal(err)
	}
	base := setting("AFTERWORD_URL", "http://127.0.0.1:8000/v1")
	request, err := http.NewRequest("POST", base+"/completions", bytes.NewReader(body))
	if err != nil {
		log.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Authorization", "Bearer "+setting("AFTERWORD_KEY", "unused"))
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		log.Fatal(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(answer.Body)
		log.Fatal(string(text))
	}
	var completion struct {
		Choices []struct{ Text string }
	}
	if err := json.NewDecoder(answer.Body).Decode(&completion); err != nil {
		log.Fatal(err)
	}
	fmt.Println(completion.Choices[0].Text)
}
