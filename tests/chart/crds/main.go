// Reads objects from standard input, a JSON document each, and decodes them strictly into the types of the operators they
// are for: the Prometheus operator's and cert-manager's. An unknown field or a wrong type is an error. Kubernetes' own
// objects are checked by its schemas; for these there are no schemas in a package, but there are the types.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	certmanager "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	"sigs.k8s.io/yaml"
)

func check(document []byte) error {
	var about struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
	}
	if err := json.Unmarshal(document, &about); err != nil {
		return err
	}
	var into any
	switch about.APIVersion + "/" + about.Kind {
	case "monitoring.coreos.com/v1/ServiceMonitor":
		into = &monitoring.ServiceMonitor{}
	case "monitoring.coreos.com/v1/PrometheusRule":
		into = &monitoring.PrometheusRule{}
	case "cert-manager.io/v1/Certificate":
		into = &certmanager.Certificate{}
	default:
		return fmt.Errorf("there is no type for %s %s here", about.APIVersion, about.Kind)
	}
	if err := yaml.UnmarshalStrict(document, into); err != nil {
		return fmt.Errorf("%s: %w", about.Kind, err)
	}
	return nil
}

func main() {
	decoder := json.NewDecoder(os.Stdin)
	for {
		var document json.RawMessage
		err := decoder.Decode(&document)
		if err == io.EOF {
			return
		}
		if err == nil {
			err = check(document)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}
