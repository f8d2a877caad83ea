<?php
// Complete a prompt with PHP's streams: php complete.php
$base = getenv("AFTERWORD_URL") ?: "http://127.0.0.1:8000/v1";
$key = getenv("AFTERWORD_KEY") ?: "unused";
$body = [
    "model" => getenv("AFTERWORD_MODEL") ?: "smollm2-135m-instruct",
    "prompt" => "Say this is a test",
    "max_tokens" => 7,
    "temperature" => 0,
];
$context = stream_context_create(["http" => [
    "method" => "POST",
    "header" => "Content-Type: application/json\r\nAuthorization: Bearer $key",
    "content" => json_encode($body),
    "ignore_errors" => true,
]]);
$answer = file_get_contents("$base/completions", false, $context);
if ($answer === false) {
    exit(1);
}
$completion = json_decode($answer);
if (!isset($completion->choices)) {
    fwrite(STDERR, "$answer\n");
    exit(1);
}
echo $completion->choices[0]->text, "\n";
