// The Go SDK v2 as a pod uses it; the protocol is in ../README.md.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/sts"
)

type answer struct {
	OK          bool   `json:"ok"`
	AccessKeyID string `json:"accessKeyId,omitempty"`
	Expiration  string `json:"expiration,omitempty"`
	Account     string `json:"account,omitempty"`
	ARN         string `json:"arn,omitempty"`
	Error       string `json:"error,omitempty"`
	Ms          int64  `json:"ms"`
}

func run(ctx context.Context, cfg aws.Config, command string) (answer, error) {
	if command != "get" && command != "identity" {
		return answer{}, fmt.Errorf("unknown command %q", command)
	}
	credentials, err := cfg.Credentials.Retrieve(ctx)
	if err != nil {
		return answer{}, err
	}
	result := answer{OK: true, AccessKeyID: credentials.AccessKeyID, Account: credentials.AccountID}
	if credentials.CanExpire {
		result.Expiration = credentials.Expires.UTC().Format(time.RFC3339)
	}
	if command == "identity" {
		identity, err := sts.NewFromConfig(cfg).GetCallerIdentity(ctx, &sts.GetCallerIdentityInput{})
		if err != nil {
			return answer{}, err
		}
		result.ARN = aws.ToString(identity.Arn)
	}
	return result, nil
}

func main() {
	ctx := context.Background()
	cfg, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	out := json.NewEncoder(os.Stdout)
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		started := time.Now()
		result, err := run(ctx, cfg, strings.TrimSpace(in.Text()))
		if err != nil {
			result = answer{Error: err.Error()}
		}
		result.Ms = time.Since(started).Milliseconds()
		if err := out.Encode(result); err != nil {
			os.Exit(1)
		}
	}
}
